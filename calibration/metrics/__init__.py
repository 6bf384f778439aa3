"""How far confidence is from correctness: errors, scores, ranking, and how sure we are of each.

Answers are reduced once to `Outcomes` (distinct confidence, how many, how many right); every metric is
a function of those three arrays, so the order of the input never matters. The one exception is the
function published with HLE, which is kept as published.
"""
