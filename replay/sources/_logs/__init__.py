"""What the readers of text logs share: pieces of lines, calls on addresses, block lifetimes, their traces."""
