"""The page of `replay report`: data and charts in Python, the heap map in `heap_map.js`."""
