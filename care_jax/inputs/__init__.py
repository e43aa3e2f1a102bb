"""Model inputs on the host: images, videos and text of a record become arrays of static shape."""
