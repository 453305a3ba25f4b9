"""Motion of robots: files of joint angles, and the robots that they belong to."""
