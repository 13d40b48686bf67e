"""Words and patterns in the names of images that tell patients from phases, views, counters and classes."""

from __future__ import annotations

import re

PATIENT_WORDS: str = (
    "patients?|pat|pt|pid|subjects?|subj|sub|person|participant|volunteer|donor|individual|animal|mouse|rat"
)
STRICT: str = "slices?|slc|frames?|frm|fr|phase|time|tp|timepoint|visit|session|sess|ses|run|acq|echo|view|z"
"""Words before a number that counts images of a patient, wherever they stand."""
COUNTED: str = (
    f"{STRICT}|sl|rec|series|study|scan|stack|dir|part|patch|tile|crop|aug|copy|channel|ch|modality|mod|img|image|im|"
    "idx|no|t|x|y|f"
)
"""These, and words that do so after a part that may be the patient."""
WITHIN: frozenset[str] = frozenset(
    "ed es dia sys diastole systole end sa la sax lax ch2 ch4 2ch 3ch 4ch l r left right od os cc mlo ap pa lat axial "
    "sagittal coronal ax sag cor tra t1 t2 t1c t1ce t1w t2w t1n t2f t2star flair dwi adc pd swi dti bold ct cta mr mri "
    "pet us cbct pre post contrast baseline followup fu hc img image im images slice frame scan view anat func dicom "
    "dcm nii mask raw orig original final copy gt w".split()
)
"""Words for phases, views, sides and modalities, of which a patient may have several."""
CLASSES: frozenset[str] = frozenset(
    "benign malignant normal abnormal cancer tumor tumour notumor healthy control case disease diseased positive "
    "negative pos neg covid pneumonia bacteria virus viral tuberculosis glioma meningioma pituitary melanoma nevus "
    "polyp adenoma lesion glaucoma train training val valid validation test testing class0 class1 g n dr h".split()
)
"""Words for classes of images and for splits, which are never patients."""

CHUNK = re.compile(r"(?<!\d)(?:19|20)\d\d[-_.][01]\d[-_.][0-3]\d(?!\d)|[^\s_\-.()\[\]{}/,+=#~@&]+")
DATE = re.compile(r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d")
TCGA = re.compile(r"TCGA[-_.][A-Z0-9]{2}[-_.][A-Z0-9]{4}", re.IGNORECASE)
SEPARATORS = r"[ _\-.()\[\]#]"
BY_WORD = re.compile(
    rf"(?<![a-z])(?:{PATIENT_WORDS}|case)(?:\d+|{SEPARATORS}{{1,2}}(?:[a-z0-9]*\d[a-z0-9]*|[a-z](?![a-z])))",
    re.IGNORECASE,
)
BY_LETTER = re.compile(r"(?<![a-z0-9])p[_-]?\d+", re.IGNORECASE)
PAIRS = re.compile(r"(?:[a-z]+\d+){2,}", re.IGNORECASE)
SIDE = re.compile(r"(?:(?:l|r|od|os|ed|es)(\d+)|(\d+)(?:l|r|od|os|ed|es))", re.IGNORECASE)
