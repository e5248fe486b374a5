"""What ``netwright train`` consists of: settings, data, the loop, its checkpoint and history."""
