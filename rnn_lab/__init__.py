"""rnn_lab: a laboratory for gradient flow in recurrent networks."""
