"""The sub-commands of `discovery-loop benchmark`; their records go under results/."""
