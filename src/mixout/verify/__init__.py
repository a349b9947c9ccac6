"""The paper's theory put to the test: each file makes claims of one kind and says whether they hold."""
