"""The paper's theory (Lee, Cho, Kang, ICLR 2020, sections 3 and 4), claim by claim."""
