"""What a person sees of a run: pictures, a page, a markdown summary and the numbers as JSON."""
