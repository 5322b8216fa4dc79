"""What is read off without measuring: tables for the documents, and what compilers made of the kernels."""
