"""`nacz bench`: nacz and other compressors on the same bytes, in the same run, every archive decoded and compared.

sources   which bytes a name stands for, and what may honestly be said of them
download  a public corpus from where its makers keep it
coders    how each compressor is called, and whether it is here
child     one direction of one compressor in a process of its own, timed
run       all of it in order, with a state to go on from
ablation  which archives tell what each part of a level gives, and how to read them
report    the rows as a table, as Markdown, as HTML
plot      bits per byte against speed, one picture
"""
