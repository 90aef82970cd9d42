"""What a burn-in run writes down."""
