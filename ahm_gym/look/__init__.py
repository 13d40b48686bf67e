"""`ahm-gym look`: what was understood of a data set, in words and as a page, before anything trains."""
