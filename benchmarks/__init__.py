"""Each script measures one thing with a peer beside it and writes its table under docs/results/."""
