"""The process that computes: what it runs on, with how many others, where it prints and what it keeps quiet about."""
