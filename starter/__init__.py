"""The starter: the tiny chat model that ships with Graft, made from text that this package generates itself."""
