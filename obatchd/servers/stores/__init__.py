"""The stores of models: what is known of them, downloads, and those of other hosts."""
