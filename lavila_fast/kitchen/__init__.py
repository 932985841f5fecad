"""The miniature kitchen: a seeded world of egocentric clips with narrations, to train and try small models on."""
