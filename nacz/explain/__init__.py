"""`nacz explain`: what each token of a text costs, what was expected in its place, and a page that shows it.

costs     a text to tokens with bits and alternatives, by the coder's own integer distributions
mixture   what all of the ensemble, none of it, and each of its members made of the language model
context   what the byte model alone would have paid
passages  where the bits went: the most expensive stretches, bits over the file
page      one self-contained HTML page of it
"""
