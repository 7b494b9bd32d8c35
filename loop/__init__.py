"""The idea: values, contracts, campaign, hull, novelty, reward, ranking. No torch, no Prefect."""
