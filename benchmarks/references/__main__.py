"""`python -m benchmarks.references`: see the package."""

from benchmarks.references import main

if __name__ == "__main__":
    main()
