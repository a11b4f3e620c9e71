"""The order of the stages, the controller that drives them, and what a run looks like from outside."""
