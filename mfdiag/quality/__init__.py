"""Sample quality: distances between a model's samples and the data, by metric, number of steps and set of weights."""
