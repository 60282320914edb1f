"""What runs children in a cluster; ``nas run`` brings its own executor for local processes."""
