"""What stylized pictures are judged by."""
