"""The bilevel update at work: classifier, weights and adapter in one jitted step."""
