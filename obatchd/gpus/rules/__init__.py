"""The rules that judge a GPU."""
