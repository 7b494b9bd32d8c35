"""What a sample must obey: conditions, atom budgets, feasibility, distances."""
