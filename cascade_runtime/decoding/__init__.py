"""From logits to tokens: what a model chooses (`choice`), for many rows over KV slots (`decoder`), until the end
(`stopping`).

    level          one model of a cascade with its slots, loaded as the recipe says
    decoder        `extend`, the one primitive, over rows (`row`): `plan` and `grouping` make the pass of them,
                   `prefixes` compute a common beginning once
    choice         logits, seed, position -> token           acceptance/    which drafts are kept
    trees/         drafts that branch                        heads, beside  drafters that read the target's states
    lookup         a drafter without weights (`weightless`)  sight, attention_scores  how much a drafter sees
    profile        what a pass costs here, for the policy's first guess
"""
