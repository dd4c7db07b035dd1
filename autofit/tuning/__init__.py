"""The driver: plan a study, propose, launch, store, tell; confirm the winner and say why it won."""
