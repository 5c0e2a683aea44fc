"""What is learned from what: a task joins a model and a loss into pure functions of a batch."""
