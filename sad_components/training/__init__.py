"""What recipes share: configs checked, components built, runs saved, ranks joined."""
