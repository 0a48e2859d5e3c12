"""Speed and memory beside peers, measured in one run; nothing here is a test."""
