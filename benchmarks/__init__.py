"""Side-by-side measurements. Run `make bench`, or `python -m benchmarks NAME ...` for single ones."""
