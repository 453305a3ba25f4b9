"""The launcher of training: checks, starts the ranks and watches over them."""
