"""The task delta w - u after training: score against how much of it is dropped, or scaled down."""
