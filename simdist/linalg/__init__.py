"""Matrix kernels that accept any leading dimensions: orthonormal factors, Newton-Schulz, safe norms."""
