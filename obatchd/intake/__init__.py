"""From the inbox to the queue: drops are claimed, indexed, chosen from and fed to the queue."""
