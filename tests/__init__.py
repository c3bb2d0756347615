# A package, so that no installed package named tests comes before it.
