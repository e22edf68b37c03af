"""The fault campaign: processes killed at random, tracking servers that fail; what was lost."""
