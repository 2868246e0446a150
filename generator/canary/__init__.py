"""What `trtgen canary` does: ask a running server the gate's images again, and tell it to those who watch."""
