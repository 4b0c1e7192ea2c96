"""Images going in: transforms, labelled data sets, batching, and the small sets that ship with the package."""
