"""`nacz explain`: what each token of a text costs, what was expected in its place, and a page that shows it.

costs     a text to tokens with bits and alternatives, by the language model's own integer distributions
context   what the byte model alone would have paid
passages  where the bits went: the most expensive stretches, bits over the file
page      one self-contained HTML page of it
"""
