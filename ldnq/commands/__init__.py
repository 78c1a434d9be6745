"""Commands: one small file each, that parses, calls and prints. Torch is imported when a command runs, not before."""
