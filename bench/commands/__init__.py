"""Two states of the results beside each other: `glnet-bench compare A B`."""
