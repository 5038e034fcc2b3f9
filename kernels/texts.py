"""A program for memray."""

texts = [str(number) for number in range(50)]
