"""The care of the GPUs of all hosts, as far as it takes the head: what cards elsewhere do, and crashes."""
