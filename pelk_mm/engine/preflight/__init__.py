"""What is looked at before a training starts: data, model, weights."""
