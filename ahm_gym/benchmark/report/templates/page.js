"use strict";

const view = document.getElementById("view");
if (view) {
  const show = () => {
    for (const part of document.querySelectorAll("[data-view]")) part.hidden = part.dataset.view !== view.value;
  };
  view.addEventListener("change", show);
  show();
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const steps = gallery.dataset.steps.split(" ").map(Number);
  const slider = gallery.querySelector("input");
  const output = gallery.querySelector("output");
  const show = () => {
    const step = steps[Number(slider.value)];
    output.value = step;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    for (const figure of gallery.querySelectorAll("figure")) {
      // A policy without a picture at this step shows the one before, or its first.
      const images = [...figure.querySelectorAll("img")];
      const shown = images.filter((image) => Number(image.dataset.step) <= step).pop() || images[0];
      for (const image of images) image.hidden = image !== shown;
    }
  };
  slider.addEventListener("input", show);
  show();
}

for (const chooser of document.querySelectorAll(".chooser")) {
  const [first, second, labels] = chooser.querySelectorAll("select");
  const show = () => {
    for (const figure of chooser.querySelectorAll("figure")) {
      const chosen = [first.value, second.value].includes(figure.dataset.policy);
      figure.hidden = !chosen || figure.dataset.labels !== labels.value;
    }
  };
  chooser.addEventListener("change", show);
  show();
}
