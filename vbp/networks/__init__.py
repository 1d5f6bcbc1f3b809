"""Networks: a name in, a network ready to run out, and what is known of it beside its tensors."""
