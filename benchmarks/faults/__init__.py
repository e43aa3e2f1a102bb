"""Hostile and broken input against the readers of this project: is each used rightly or refused in one line?"""
