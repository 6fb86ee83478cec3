"""Learn medical image segmentation from flawed masks, and find and mend the flaws."""
